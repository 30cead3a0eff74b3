-- What each user did in each tumbling window of event time, one JSON line a window.
-- The events come added up by key, window and batch; those that reach this were let through before
-- their window had closed (Gate.java), so nothing is dropped here. The line is put together by hand:
-- JSON_OBJECT would sort its keys, and builds a tree for every row.
SELECT
  '{${key_json}:' || JSON_STRING(event_key)
    || ',"window_start":"' || REPLACE(CAST(window_start AS STRING), ' ', 'T')
    || 'Z","window_end":"' || REPLACE(CAST(window_end AS STRING), ' ', 'T')
    || 'Z","total_value":' || CASE
      -- JSON has no infinity: a sum of doubles that has overflowed is null.
      WHEN CAST(total_value AS STRING) IN ('Infinity', '-Infinity', 'NaN') THEN 'null'
      ELSE COALESCE(CAST(total_value AS STRING), 'null')
    END
    || ',"latest_event":"' || REPLACE(CAST(latest_event AS STRING), ' ', 'T')
    || 'Z","event_count":' || CAST(event_count AS STRING)
    || U&'}\000A' AS line
FROM (
  SELECT
    event_key,
    window_start,
    window_end,
    SUM(total_value) AS total_value,
    MAX(event_time) AS latest_event,
    SUM(event_count) AS event_count
  FROM TABLE(TUMBLE(TABLE partials, DESCRIPTOR(event_time), INTERVAL '${window_s}' SECOND(10, 3)))
  GROUP BY event_key, window_start, window_end
)
