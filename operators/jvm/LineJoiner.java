/**
 * Lines to blocks of lines: a file sink that is written a block at a time is several times faster
 * than one written a line at a time (each write to a recoverable stream is a system call).
 *
 * Input: RowData whose first field is a line, ended by a newline, as bytes or a string, and whose next
 * fields name its partition; or a whole Arrow batch of such rows (byte[]); or a Row whose second field
 * holds such lines packed (bridge.ACCEPTED).
 * Output: RowData (block without its last newline, partition...).
 * Keeps nothing across a checkpoint: it flushes before the barrier.
 */
public class LineJoiner extends Flushing {
  private final RowType type;
  private final int partitionFields;
  private final boolean text;
  private transient Map blocks;

  public LineJoiner(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    super(((Number) refs[2]).intValue(), ((Number) refs[3]).longValue(), ((Number) refs[4]).longValue());
    this.type = (RowType) refs[0];
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
    } else if (value instanceof Row) {
      addBlock(Packed.unpack((byte[]) ((Row) value).getField(1)));
    } else {
      addBatch((byte[]) value);
    }
  }

  private void addBatch(byte[] batch) throws Exception {
    ArrowSerializer arrow = new ArrowSerializer(type, type);
    arrow.open(new java.io.ByteArrayInputStream(batch), new java.io.ByteArrayOutputStream(0));
    int rows = arrow.load();
    for (int i = 0; i < rows; i++) {
      add(arrow.read(i));
    }
    arrow.close();
  }

  private void addBlock(byte[] lines) throws Exception {
    if (lines.length >= maxBytes) {
      flush();
      output.collect(new StreamRecord(row(lines, java.util.Collections.EMPTY_LIST)));
    } else if (lines.length > 0) {
      java.io.ByteArrayOutputStream block = open(null);
      block.write(lines, 0, lines.length);
      block.write('\n');
      added((long) lines.length + 1);
    }
  }

  private void add(RowData row) throws Exception {
    byte[] line = text ? row.getString(0).toBytes() : row.getBinary(0);
    java.io.ByteArrayOutputStream block = open(row);
    block.write(line, 0, line.length);
    added((long) line.length);
  }

  private java.io.ByteArrayOutputStream open(RowData row) {
    Object key = partition(row);
    java.io.ByteArrayOutputStream block = (java.io.ByteArrayOutputStream) blocks.get(key);
    if (block == null) {
      block = new java.io.ByteArrayOutputStream(1 << 12);
      blocks.put(key, block);
    }
    return block;
  }

  private Object partition(RowData row) {
    if (partitionFields == 0) {
      return java.util.Collections.EMPTY_LIST;
    }
    java.util.ArrayList key = new java.util.ArrayList(partitionFields);
    for (int i = 0; i < partitionFields; i++) {
      key.add(row.getString(i + 1).toString());
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
