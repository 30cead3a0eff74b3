-- processed_events
CREATE TEMPORARY TABLE processed_events (user_id STRING, product_id STRING, action STRING,
  price DOUBLE, `timestamp` STRING) WITH (
  'topic' = '${prefix}-processed-events', 'format' = 'json',
  'sink.transactional-id-prefix' = '${prefix}-processed', ${sink})
-- dead_letters
CREATE TEMPORARY TABLE dead_letters (line STRING) WITH (
  'topic' = '${prefix}-dead-letters', 'format' = 'raw',
  'sink.transactional-id-prefix' = '${prefix}-dead', ${sink})
-- quarantine
CREATE TEMPORARY TABLE quarantine (line STRING) WITH (
  'topic' = '${prefix}-quarantine', 'format' = 'raw',
  'sink.transactional-id-prefix' = '${prefix}-quarantine', ${sink})
-- user_windows
CREATE TEMPORARY TABLE user_windows (user_id STRING, window_start STRING, window_end STRING,
  total_value DOUBLE, latest_event STRING, event_count BIGINT) WITH (
  'topic' = '${prefix}-user-windows', 'format' = 'json',
  'sink.transactional-id-prefix' = '${prefix}-windows', ${sink})
-- insert processed_events
INSERT INTO processed_events
SELECT user_id, product_id, action, price, REPLACE(CAST(event_time AS STRING), ' ', 'T') || 'Z'
FROM events
-- insert user_windows
INSERT INTO user_windows
SELECT user_id, REPLACE(CAST(window_start AS STRING), ' ', 'T') || 'Z',
  REPLACE(CAST(window_end AS STRING), ' ', 'T') || 'Z', SUM(price),
  REPLACE(CAST(MAX(event_time) AS STRING), ' ', 'T') || 'Z', COUNT(*)
FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(event_time), INTERVAL '5' MINUTE))
GROUP BY user_id, window_start, window_end
-- insert dead_letters
INSERT INTO dead_letters SELECT line FROM rejected_dead
-- insert quarantine
INSERT INTO quarantine SELECT line FROM rejected_poison
