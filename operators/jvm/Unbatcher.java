/** Arrow batches to rows. Input: byte[], an Arrow IPC stream of one batch. Output: one RowData a row. */
public class Unbatcher extends AbstractStreamOperator implements OneInputStreamOperator {
  private final RowType type;

  public Unbatcher(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.type = (RowType) refs[0];
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void processElement(StreamRecord record) throws Exception {
    ArrowSerializer arrow = new ArrowSerializer(type, type);
    arrow.open(new java.io.ByteArrayInputStream((byte[]) record.getValue()),
        new java.io.ByteArrayOutputStream(0));
    int rows = arrow.load();
    for (int i = 0; i < rows; i++) {
      output.collect(new StreamRecord(arrow.read(i)));
    }
    arrow.close();
  }
}
