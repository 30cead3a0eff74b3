/**
 * Lines to the records of a Kafka sink, one a line.
 *
 * Input: as LineJoiner's: RowData whose first field is a line, ended by a newline, as bytes or a string;
 * or a Row whose first field holds such lines packed, and whose next fields name their partition.
 * Output: RowData(value), or of envelopes RowData(topic, key, value, headers). The topic is the template
 * with the partition's names filled in, the key the envelope's message_checksum, and what is known of the
 * failure goes into headers too, so that tools can route and count without parsing the value.
 *
 * Keeps nothing: a crash neither loses nor doubles a record here.
 */
public class KafkaLines extends AbstractStreamOperator implements OneInputStreamOperator {
  private static final String WRITER =
      "org.apache.flink.streaming.runtime.operators.sink.SinkWriterOperator";
  private final String topic;
  private final java.util.List names;
  private final boolean envelopes;
  private final boolean text;
  private transient org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory json;

  public KafkaLines(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    RowType type = (RowType) refs[0];
    this.topic = (String) refs[1];
    this.names = (java.util.List) refs[2];
    this.envelopes = ((Boolean) refs[3]).booleanValue();
    this.text = type.getTypeAt(0).getTypeRoot() == LogicalTypeRoot.VARCHAR;
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void open() throws Exception {
    super.open();
    json = new org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory();
    guardWriters();
  }

  /*
   * A task that fails closes its sinks, whose transactions are aborted then. When the broker is away that
   * throws after max.block.ms, and an exception at this place ends the whole TaskManager: nothing would
   * take the job up again. The sinks behind this step have been opened before it; without chaining
   * (pipeline.operator-chaining.enabled = false) they are in other tasks, and have no guard.
   */
  private void guardWriters() throws Exception {
    java.lang.reflect.Field chain = StreamTask.class.getDeclaredField("operatorChain");
    chain.setAccessible(true);
    Iterator wrappers = ((org.apache.flink.streaming.runtime.tasks.OperatorChain)
        chain.get(getContainingTask())).getAllOperators().iterator();
    while (wrappers.hasNext()) {
      Object operator = ((org.apache.flink.streaming.runtime.tasks.StreamOperatorWrapper) wrappers.next())
          .getStreamOperator();
      if (operator.getClass().getName().equals(WRITER)) {
        java.lang.reflect.Field writer = operator.getClass().getDeclaredField("sinkWriter");
        writer.setAccessible(true);
        Object unguarded = writer.get(operator);
        if (unguarded != null && !(unguarded instanceof Guarded)) {
          writer.set(operator, new Guarded(
              (org.apache.flink.api.connector.sink2.CommittingSinkWriter) unguarded, getContainingTask()));
        }
      }
    }
  }

  /** A sink's writer that does not fail at the end of a task that has failed already. */
  static class Guarded implements org.apache.flink.api.connector.sink2.CommittingSinkWriter {
    private final org.apache.flink.api.connector.sink2.CommittingSinkWriter writer;
    private final StreamTask task;

    Guarded(org.apache.flink.api.connector.sink2.CommittingSinkWriter writer, StreamTask task) {
      this.writer = writer;
      this.task = task;
    }

    public void write(Object element, org.apache.flink.api.connector.sink2.SinkWriter.Context context)
        throws java.io.IOException, InterruptedException {
      writer.write(element, context);
    }

    public void flush(boolean endOfInput) throws java.io.IOException, InterruptedException {
      writer.flush(endOfInput);
    }

    public void writeWatermark(org.apache.flink.api.common.eventtime.Watermark mark)
        throws java.io.IOException, InterruptedException {
      writer.writeWatermark(mark);
    }

    public java.util.Collection prepareCommit() throws java.io.IOException, InterruptedException {
      return writer.prepareCommit();
    }

    public void close() throws Exception {
      try {
        writer.close();
      } catch (Exception error) {
        if (!task.isFailing() && !task.isCanceled()) {
          throw error;
        }
        if (error instanceof InterruptedException) {
          Thread.currentThread().interrupt();
        }
        org.slf4j.LoggerFactory.getLogger(KafkaLines.class)
            .warn("a sink of a task that has failed was not closed in order", error);
      }
    }
  }

  public void processElement(StreamRecord record) throws Exception {
    Object value = record.getValue();
    if (value instanceof RowData) {
      RowData row = (RowData) value;
      byte[] line = text ? row.getString(0).toBytes() : row.getBinary(0);
      int end = line.length > 0 && line[line.length - 1] == '\n' ? line.length - 1 : line.length;
      collect(new Object[] {java.util.Arrays.copyOf(line, end)});
    } else {
      Row row = (Row) value;
      send(Packed.unpack((byte[]) row.getField(0)), envelopes ? topicOf(row) : null);
    }
  }

  private void send(byte[] lines, BinaryStringData to) throws Exception {
    int begin = 0;
    for (int end = 0; begin < lines.length; end++) {
      if (end == lines.length || lines[end] == '\n') {
        byte[] value = java.util.Arrays.copyOfRange(lines, begin, end);
        collect(envelopes ? envelope(value, to) : new Object[] {value});
        begin = end + 1;
      }
    }
  }

  private Object[] envelope(byte[] value, BinaryStringData to) throws Exception {
    Map headers = headersOf(value);
    Object key = headers.get(BinaryStringData.fromString("breakwater-message-checksum"));
    return new Object[] {to, key, value, new org.apache.flink.table.data.GenericMapData(headers)};
  }

  private void collect(Object[] fields) {
    output.collect(new StreamRecord(GenericRowData.of(fields)));
  }

  private BinaryStringData topicOf(Row row) {
    String name = topic;
    for (int i = 0; i < names.size(); i++) {
      name = name.replace("{" + names.get(i) + "}", (String) row.getField(i + 1));
    }
    return BinaryStringData.fromString(name);
  }

  /* Looks only at the fields of the envelope itself; nested ones are skipped. */
  private Map headersOf(byte[] envelope) throws Exception {
    Map headers = new LinkedHashMap();
    org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser parser =
        json.createParser(envelope);
    parser.nextToken();
    while (parser.nextToken()
        == org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken.FIELD_NAME) {
      String name = parser.currentName();
      org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken token = parser.nextToken();
      if (token.isStructStart()) {
        parser.skipChildren();
      } else if (isHeader(name) && parser.getTextLength() > 0
          && token != org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken.VALUE_NULL) {
        headers.put(BinaryStringData.fromString("breakwater-" + name.replace('_', '-')),
            parser.getText().getBytes("UTF-8"));
      }
    }
    parser.close();
    return headers;
  }

  private static boolean isHeader(String name) {
    return name.startsWith("source_") || name.startsWith("error_") || name.equals("message_checksum")
        || name.equals("message_bytes") || name.equals("message_truncated") || name.equals("encoding")
        || name.equals("failure_category") || name.equals("processing_stage")
        || name.equals("processing_attempts") || name.equals("first_failure_time")
        || name.equals("last_failure_time") || name.equals("fingerprint") || name.equals("disposition")
        || name.equals("replay_count") || name.equals("code_version")
        || name.equals("contract_version");
  }
}
