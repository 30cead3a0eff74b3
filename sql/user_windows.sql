-- What each user did in each tumbling window of event time, one JSON line a window.
-- The events that reach this have been let through before their window closed (Unbatcher.java),
-- so nothing is dropped here.
SELECT
  JSON_OBJECT(
    KEY '${key}' VALUE `${key}`,
    KEY 'window_start' VALUE REPLACE(CAST(window_start AS STRING), ' ', 'T') || 'Z',
    KEY 'window_end' VALUE REPLACE(CAST(window_end AS STRING), ' ', 'T') || 'Z',
    KEY 'total_value' VALUE total_value,
    KEY 'latest_event' VALUE REPLACE(CAST(latest_event AS STRING), ' ', 'T') || 'Z',
    KEY 'event_count' VALUE event_count
  ) || U&'\000A' AS line
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
