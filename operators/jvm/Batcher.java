/**
 * Rows to Arrow batches. Input: RowData of the given type, whose first field is the payload.
 * Output: byte[], an Arrow IPC stream of one batch. Keeps nothing across a checkpoint: it flushes
 * before the barrier, so a crash neither loses nor doubles a row here.
 */
public class Batcher extends Flushing {
  private final RowType type;
  private transient java.io.ByteArrayOutputStream out;
  private transient ArrowSerializer arrow;

  public Batcher(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    super(((Number) refs[1]).intValue(), ((Number) refs[2]).longValue(), ((Number) refs[3]).longValue());
    this.type = (RowType) refs[0];
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void open() throws Exception {
    super.open();
    out = new java.io.ByteArrayOutputStream(1 << 16);
  }

  public void processElement(StreamRecord record) throws Exception {
    RowData row = (RowData) record.getValue();
    if (arrow == null) {
      out.reset();
      arrow = new ArrowSerializer(type, type);
      arrow.open(new java.io.ByteArrayInputStream(new byte[0]), out);
    }
    arrow.write(row);
    added(row.isNullAt(0) ? 0L : (long) row.getBinary(0).length);
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
      arrow.close();
    }
    super.close();
  }
}
