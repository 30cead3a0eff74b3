/**
 * Lines to blocks of lines: a file sink that is written a block at a time is several times faster
 * than one written a line at a time (each write to a recoverable stream is a system call).
 *
 * Input: RowData whose first field is a line, ended by a newline, as bytes or a string; or a Row whose
 * first field holds such lines packed, and whose next fields name the partition that all of them go to
 * (bridge.packed_type; without a partition bridge.ACCEPTED).
 * Output: RowData (block without its last newline, partition...).
 * Keeps nothing across a checkpoint: it flushes before the barrier.
 */
public class LineJoiner extends Flushing {
  private final int partitionFields;
  private final boolean text;
  private transient Map blocks;

  public LineJoiner(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    super(((Number) refs[2]).intValue(), ((Number) refs[3]).longValue(), ((Number) refs[4]).longValue());
    RowType type = (RowType) refs[0];
    this.partitionFields = ((Number) refs[1]).intValue();
    this.text = type.getTypeAt(0).getTypeRoot() == LogicalTypeRoot.VARCHAR;
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void open() throws Exception {
    super.open();
    blocks = new LinkedHashMap();
  }

  public void processElement(StreamRecord record) throws Exception {
    Object value = record.getValue();
    if (value instanceof RowData) {
      add((RowData) value);
    } else {
      Row row = (Row) value;
      addBlock(Packed.unpack((byte[]) row.getField(0)), partition(row));
    }
  }

  private void addBlock(byte[] lines, java.util.List partition) throws Exception {
    if (lines.length >= maxBytes) {
      flush();
      output.collect(new StreamRecord(row(lines, partition)));
    } else if (lines.length > 0) {
      java.io.ByteArrayOutputStream block = open(partition);
      block.write(lines, 0, lines.length);
      block.write('\n');
      added((long) lines.length + 1);
    }
  }

  private void add(RowData row) throws Exception {
    byte[] line = text ? row.getString(0).toBytes() : row.getBinary(0);
    java.io.ByteArrayOutputStream block = open(java.util.Collections.EMPTY_LIST);
    block.write(line, 0, line.length);
    added((long) line.length);
  }

  private java.io.ByteArrayOutputStream open(java.util.List key) {
    java.io.ByteArrayOutputStream block = (java.io.ByteArrayOutputStream) blocks.get(key);
    if (block == null) {
      block = new java.io.ByteArrayOutputStream(1 << 12);
      blocks.put(key, block);
    }
    return block;
  }

  private java.util.List partition(Row row) {
    java.util.ArrayList key = new java.util.ArrayList(partitionFields);
    for (int i = 0; i < partitionFields; i++) {
      key.add(row.getField(i + 1));
    }
    return key;
  }

  void emit() throws Exception {
    Iterator entries = blocks.entrySet().iterator();
    while (entries.hasNext()) {
      Map.Entry entry = (Map.Entry) entries.next();
      java.util.List key = (java.util.List) entry.getKey();
      byte[] lines = ((java.io.ByteArrayOutputStream) entry.getValue()).toByteArray();
      output.collect(new StreamRecord(row(java.util.Arrays.copyOf(lines, lines.length - 1), key)));
    }
    blocks.clear();
  }

  private GenericRowData row(byte[] block, java.util.List key) {
    Object[] fields = new Object[1 + partitionFields];
    fields[0] = block;
    for (int i = 0; i < partitionFields; i++) {
      fields[i + 1] = BinaryStringData.fromString((String) key.get(i));
    }
    return GenericRowData.of(fields);
  }

  /* A file sink has no use for event time: a mark is no reason to write small blocks. */
  public void processWatermark(Watermark mark) throws Exception {
    output.emitWatermark(mark);
  }
}
