-- What each user did in each tumbling window of event time, one JSON line a window.
-- The events that reach this were let through before their window had closed (Unbatcher.java), so
-- nothing is dropped here. The line is put together by hand: JSON_OBJECT would sort its keys, and
-- builds a tree for every row.
SELECT
  '{${key_json}:' || JSON_STRING(`${key}`)
    || ',"window_start":"' || REPLACE(CAST(window_start AS STRING), ' ', 'T')
    || 'Z","window_end":"' || REPLACE(CAST(window_end AS STRING), ' ', 'T')
    || 'Z","total_value":' || COALESCE(CAST(total_value AS STRING), 'null')
    || ',"latest_event":"' || REPLACE(CAST(latest_event AS STRING), ' ', 'T')
    || 'Z","event_count":' || CAST(event_count AS STRING)
    || U&'}\000A' AS line
FROM (
  SELECT
    `${key}`,
    window_start,
    window_end,
    ${total} AS total_value,
    MAX(`${event_time}`) AS latest_event,
    COUNT(*) AS event_count
  FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(`${event_time}`), INTERVAL '${window_s}' SECOND(10, 3)))
  GROUP BY `${key}`, window_start, window_end
)
