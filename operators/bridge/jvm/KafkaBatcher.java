/**
 * Rows of Flink's Kafka source to Arrow batches of records.
 *
 * Input: RowData(payload, key, topic, partition, headers, offset, timestamp), as kafka_source.py orders
 * them; a tombstone's payload is null. Output: byte[], an Arrow IPC stream of one batch whose columns
 * are those of batches.RECORDS; what a topic does not have (a cut payload, a fault) is null.
 *
 * A payload above maxPayload is cut to keepBytes here, and its length and MD5 go along: a huge record
 * must not cross to Python. Keeps nothing across a checkpoint: it flushes before the barrier.
 */
public class KafkaBatcher extends Flushing {
  private static final int PAYLOAD = 0;
  private static final int TOPIC = 1;
  private static final int PARTITION = 2;
  private static final int OFFSET = 3;
  private static final int TIMESTAMP = 4;
  private static final int KEY = 5;
  private static final int PAYLOAD_BYTES = 6;
  private static final int CHECKSUM = 7;
  private static final int HEADERS = 9;
  private final RowType type;
  private final int maxPayload;
  private final int keepBytes;
  private transient java.io.ByteArrayOutputStream out;
  private transient ArrowSerializer arrow;
  private transient GenericRowData record;
  private transient BinaryStringData topic;

  public KafkaBatcher(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    super(((Number) refs[1]).intValue(), ((Number) refs[2]).longValue(), ((Number) refs[3]).longValue());
    this.type = (RowType) refs[0];
    this.maxPayload = ((Number) refs[4]).intValue();
    this.keepBytes = ((Number) refs[5]).intValue();
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void open() throws Exception {
    super.open();
    out = new java.io.ByteArrayOutputStream(1 << 16);
    record = new GenericRowData(type.getFieldCount());
  }

  public void processElement(StreamRecord element) throws Exception {
    RowData row = (RowData) element.getValue();
    byte[] payload = row.isNullAt(0) ? null : row.getBinary(0);
    byte[] key = row.isNullAt(1) ? null : row.getBinary(1);
    setPayload(payload);
    record.setField(KEY, key);
    record.setField(TOPIC, topic(row.getString(2).toString()));
    record.setField(PARTITION, Integer.valueOf(row.getInt(3)));
    record.setField(OFFSET, Long.valueOf(row.getLong(5)));
    record.setField(TIMESTAMP, row.isNullAt(6) ? null
        : Long.valueOf(row.getTimestamp(6, 3).getMillisecond()));
    long size = (payload == null ? 0L : (long) payload.length) + (key == null ? 0L : (long) key.length);
    if (type.getFieldCount() > HEADERS) {
      // Most records have none: a null costs less than an empty map.
      org.apache.flink.table.data.MapData headers = row.isNullAt(4) || row.getMap(4).size() == 0 ? null
          : row.getMap(4);
      record.setField(HEADERS, headers);
      size += headers == null ? 0L : sizeOf(headers);
    }
    write();
    added(size);
  }

  private static long sizeOf(org.apache.flink.table.data.MapData headers) {
    org.apache.flink.table.data.ArrayData names = headers.keyArray();
    org.apache.flink.table.data.ArrayData values = headers.valueArray();
    long size = 0;
    for (int i = 0; i < headers.size(); i++) {
      size += names.getString(i).toBytes().length + (values.isNullAt(i) ? 0 : values.getBinary(i).length);
    }
    return size;
  }

  /* The same for many records: its bytes are made once. */
  private BinaryStringData topic(String name) {
    if (topic == null || !topic.toString().equals(name)) {
      topic = BinaryStringData.fromString(name);
      topic.ensureMaterialized();
    }
    return topic;
  }

  private void setPayload(byte[] payload) throws Exception {
    boolean cut = payload != null && payload.length > maxPayload;
    record.setField(PAYLOAD, cut ? java.util.Arrays.copyOf(payload, keepBytes) : payload);
    record.setField(PAYLOAD_BYTES, cut ? Long.valueOf((long) payload.length) : null);
    record.setField(CHECKSUM, cut ? md5(payload) : null);
  }

  private static BinaryStringData md5(byte[] bytes) throws Exception {
    byte[] digest = java.security.MessageDigest.getInstance("MD5").digest(bytes);
    StringBuilder text = new StringBuilder();
    for (int i = 0; i < digest.length; i++) {
      text.append(Character.forDigit((digest[i] >> 4) & 15, 16));
      text.append(Character.forDigit(digest[i] & 15, 16));
    }
    return BinaryStringData.fromString(text.toString());
  }

  private void write() throws Exception {
    if (arrow == null) {
      out.reset();
      arrow = new ArrowSerializer(type, type);
      arrow.open(new java.io.ByteArrayInputStream(new byte[0]), out);
    }
    arrow.write(record);
  }

  void emit() throws Exception {
    arrow.finishCurrentBatch();
    byte[] batch = out.toByteArray();
    arrow.close();
    arrow = null;
    output.collect(new StreamRecord(batch));
  }

  public void close() throws Exception {
    if (arrow != null) {
      free();
    }
    super.close();
  }

  /*
   * Flink interrupts a task that fails, and that closes the channel below Arrow's writer for good: to
   * end the stream in it throws. Here that would be fatal for the whole TaskManager, so the writer gets
   * a new channel first, and what fails all the same costs the memory of one batch.
   */
  private void free() {
    boolean interrupted = Thread.interrupted();
    try {
      arrow.resetWriter();
      arrow.close();
    } catch (Exception error) {
      LOG.warn("a batch was not freed", error);
    }
    arrow = null;
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
