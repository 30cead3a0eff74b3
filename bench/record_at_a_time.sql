-- processed_events
CREATE TEMPORARY TABLE processed_events (user_id STRING, product_id STRING, action STRING,
  price DOUBLE, `timestamp` STRING, source_topic STRING, source_partition INT, source_offset BIGINT) WITH (
  'connector' = 'filesystem', 'path' = '${output}/processed_events', 'format' = 'json', ${rolling})
-- late_events
CREATE TEMPORARY TABLE late_events (user_id STRING, product_id STRING, action STRING,
  price DOUBLE, `timestamp` STRING, source_topic STRING, source_partition INT, source_offset BIGINT) WITH (
  'connector' = 'filesystem', 'path' = '${output}/late_events', 'format' = 'json', ${rolling})
-- dead_letters
CREATE TEMPORARY TABLE dead_letters (line STRING, queue STRING, `date` STRING, error_type STRING)
PARTITIONED BY (queue, `date`, error_type) WITH (
  'connector' = 'filesystem', 'path' = '${output}/dead_letters', 'format' = 'raw', ${rolling})
-- quarantine
CREATE TEMPORARY TABLE quarantine (line STRING, reason STRING) PARTITIONED BY (reason) WITH (
  'connector' = 'filesystem', 'path' = '${output}/quarantine', 'format' = 'raw', ${rolling})
-- user_windows
CREATE TEMPORARY TABLE user_windows (user_id STRING, window_start STRING, window_end STRING,
  total_value DOUBLE, latest_event STRING, event_count BIGINT) WITH (
  'connector' = 'filesystem', 'path' = '${output}/user_windows', 'format' = 'json', ${rolling})
-- insert processed_events
INSERT INTO processed_events
SELECT user_id, product_id, action, price, REPLACE(CAST(event_time AS STRING), ' ', 'T') || 'Z',
  CAST(NULL AS STRING), CAST(NULL AS INT), CAST(NULL AS BIGINT)
FROM events
-- insert late_events
INSERT INTO late_events
SELECT user_id, product_id, action, price, REPLACE(CAST(event_time AS STRING), ' ', 'T') || 'Z',
  CAST(NULL AS STRING), CAST(NULL AS INT), CAST(NULL AS BIGINT)
FROM events
WHERE CURRENT_WATERMARK(event_time) >= TO_TIMESTAMP_LTZ(event_ms - MOD(event_ms, 300000) + 299999, 3)
-- insert user_windows
INSERT INTO user_windows
SELECT user_id, REPLACE(CAST(window_start AS STRING), ' ', 'T') || 'Z',
  REPLACE(CAST(window_end AS STRING), ' ', 'T') || 'Z', SUM(price),
  REPLACE(CAST(MAX(event_time) AS STRING), ' ', 'T') || 'Z', COUNT(*)
FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(event_time), INTERVAL '5' MINUTE))
GROUP BY user_id, window_start, window_end
-- insert dead_letters
INSERT INTO dead_letters SELECT line, queue, `date`, error_type FROM rejected_dead
-- insert quarantine
INSERT INTO quarantine SELECT line, reason FROM rejected_poison
