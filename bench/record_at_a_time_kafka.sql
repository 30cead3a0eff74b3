-- records
CREATE TEMPORARY TABLE records (payload BYTES, record_key BYTES,
  source_topic STRING METADATA FROM 'topic' VIRTUAL,
  source_partition INT METADATA FROM 'partition' VIRTUAL,
  source_offset BIGINT METADATA FROM 'offset' VIRTUAL,
  sent TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  WATERMARK FOR sent AS sent - INTERVAL '10' MINUTE) WITH (
  'connector' = 'kafka', 'topic' = '${topic}', 'properties.bootstrap.servers' = '${servers}',
  'properties.group.id' = '${prefix}', ${source},
  'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset',
  'value.format' = 'raw', 'value.fields-include' = 'EXCEPT_KEY',
  'key.format' = 'raw', 'key.fields' = 'record_key')
-- processed_events
CREATE TEMPORARY TABLE processed_events (user_id STRING, product_id STRING, action STRING,
  price DOUBLE, `timestamp` STRING, source_topic STRING, source_partition INT, source_offset BIGINT) WITH (
  'topic' = '${prefix}-processed-events', 'format' = 'json',
  'sink.transactional-id-prefix' = '${prefix}-processed', ${sink})
-- late_events
CREATE TEMPORARY TABLE late_events (user_id STRING, product_id STRING, action STRING,
  price DOUBLE, `timestamp` STRING, source_topic STRING, source_partition INT, source_offset BIGINT) WITH (
  'topic' = '${prefix}-late-events', 'format' = 'json',
  'sink.transactional-id-prefix' = '${prefix}-late', ${sink})
-- dead_letters
CREATE TEMPORARY TABLE dead_letters (line STRING, headers MAP<STRING, BYTES> METADATA) WITH (
  'topic' = '${prefix}-dead-letters', 'format' = 'raw',
  'sink.transactional-id-prefix' = '${prefix}-dead', ${sink})
-- quarantine
CREATE TEMPORARY TABLE quarantine (line STRING, headers MAP<STRING, BYTES> METADATA) WITH (
  'topic' = '${prefix}-quarantine', 'format' = 'raw',
  'sink.transactional-id-prefix' = '${prefix}-quarantine', ${sink})
-- user_windows
CREATE TEMPORARY TABLE user_windows (user_id STRING, window_start STRING, window_end STRING,
  total_value DOUBLE, latest_event STRING, event_count BIGINT) WITH (
  'topic' = '${prefix}-user-windows', 'format' = 'json',
  'sink.transactional-id-prefix' = '${prefix}-windows', ${sink})
-- insert processed_events
INSERT INTO processed_events
SELECT user_id, product_id, action, price, REPLACE(CAST(event_time AS STRING), ' ', 'T') || 'Z',
  source_topic, source_partition, source_offset
FROM events
-- late by sql
CREATE TEMPORARY VIEW late AS SELECT * FROM events
WHERE CURRENT_WATERMARK(event_time) >= TO_TIMESTAMP_LTZ(event_ms - MOD(event_ms, 300000) + 299999, 3)
-- windows by sql
CREATE TEMPORARY VIEW windows AS
SELECT user_id, window_start, window_end, SUM(price) AS total_value,
  MAX(event_time) AS latest_event, COUNT(*) AS event_count
FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(event_time), INTERVAL '5' MINUTE))
GROUP BY user_id, window_start, window_end
-- late by pyflink
CREATE TEMPORARY VIEW late AS SELECT *, TO_TIMESTAMP_LTZ(event_ms, 3) AS event_time FROM late_rows
-- windows by pyflink
CREATE TEMPORARY VIEW windows AS
SELECT user_id, TO_TIMESTAMP_LTZ(end_ms - 300000, 3) AS window_start,
  TO_TIMESTAMP_LTZ(end_ms, 3) AS window_end, total_value,
  TO_TIMESTAMP_LTZ(latest_ms, 3) AS latest_event, event_count
FROM window_rows
-- insert late_events
INSERT INTO late_events
SELECT user_id, product_id, action, price, REPLACE(CAST(event_time AS STRING), ' ', 'T') || 'Z',
  source_topic, source_partition, source_offset
FROM late
-- insert user_windows
INSERT INTO user_windows
SELECT user_id, REPLACE(CAST(window_start AS STRING), ' ', 'T') || 'Z',
  REPLACE(CAST(window_end AS STRING), ' ', 'T') || 'Z', total_value,
  REPLACE(CAST(latest_event AS STRING), ' ', 'T') || 'Z', event_count
FROM windows
-- insert dead_letters
INSERT INTO dead_letters SELECT line, MAP['error-type', CAST(error_type AS BYTES)] FROM rejected_dead
-- insert quarantine
INSERT INTO quarantine SELECT line, MAP['error-type', CAST(error_type AS BYTES)] FROM rejected_poison
