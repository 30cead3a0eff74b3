-- source_events
CREATE TEMPORARY TABLE source_events (user_id STRING, product_id STRING, action STRING, price DOUBLE,
  `timestamp` STRING, source_partition INT METADATA FROM 'partition' VIRTUAL,
  source_offset BIGINT METADATA FROM 'offset' VIRTUAL,
  event_time AS CASE WHEN `timestamp` < '2100' THEN
    TO_TIMESTAMP_LTZ(UNIX_TIMESTAMP(REPLACE(SUBSTR(`timestamp`, 1, 19), 'T', ' ')) * 1000
      + CAST(SUBSTR(`timestamp`, 21, 3) AS BIGINT), 3) END,
  WATERMARK FOR event_time AS event_time - INTERVAL '10' MINUTE) WITH (
  'connector' = 'kafka', 'topic' = '${topic}', 'properties.bootstrap.servers' = '${servers}',
  'properties.group.id' = '${prefix}', ${source},
  'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset',
  'format' = 'json', 'json.ignore-parse-errors' = 'true')
-- processed_events
CREATE TEMPORARY TABLE processed_events (user_id STRING, product_id STRING, action STRING,
  price DOUBLE, `timestamp` STRING, source_partition INT, source_offset BIGINT) WITH (
  'topic' = '${prefix}-processed-events', 'format' = 'json',
  'sink.transactional-id-prefix' = '${prefix}-processed', ${sink})
-- user_windows
CREATE TEMPORARY TABLE user_windows (user_id STRING, window_start TIMESTAMP(3),
  window_end TIMESTAMP(3), total_value DOUBLE, latest_event TIMESTAMP_LTZ(3), event_count BIGINT) WITH (
  'topic' = '${prefix}-user-windows', 'format' = 'json',
  'sink.transactional-id-prefix' = '${prefix}-windows', ${sink})
-- dead_letters
CREATE TEMPORARY TABLE dead_letters (user_id STRING, product_id STRING, action STRING,
  price DOUBLE, `timestamp` STRING, source_partition INT, source_offset BIGINT, reason STRING) WITH (
  'topic' = '${prefix}-dead-letters', 'format' = 'json',
  'sink.transactional-id-prefix' = '${prefix}-dead', ${sink})
-- judged
CREATE TEMPORARY VIEW judged AS
SELECT *, CASE
    WHEN user_id IS NULL OR user_id = '' OR product_id IS NULL OR product_id = '' THEN 'missing_required'
    WHEN price IS NULL OR NOT (price >= 0 AND price < 1e308) THEN 'invalid_price'
    WHEN action IS NULL OR action NOT IN ('view', 'click', 'purchase', 'add_to_cart') THEN 'unknown_action'
    WHEN event_time IS NULL THEN 'invalid_timestamp' END AS reason
FROM source_events
-- insert processed_events
INSERT INTO processed_events
SELECT user_id, product_id, action, price, `timestamp`, source_partition, source_offset
FROM judged WHERE reason IS NULL
-- insert dead_letters
INSERT INTO dead_letters
SELECT user_id, product_id, action, price, `timestamp`, source_partition, source_offset, reason
FROM judged WHERE reason IS NOT NULL
-- insert user_windows
INSERT INTO user_windows
SELECT user_id, window_start, window_end, SUM(price), MAX(event_time), COUNT(*)
FROM TABLE(TUMBLE(TABLE judged, DESCRIPTOR(event_time), INTERVAL '5' MINUTE))
WHERE reason IS NULL
GROUP BY user_id, window_start, window_end
