/**
 * Lines as Python packs them (batches.pack_lines): LZ4 blocks, each behind its packed and its full
 * length (little-endian ints), and without its last newline.
 *
 * Flink's own Lz4BlockDecompressor reads the same, but by LZ4's "fast" decompressor, which is plain
 * Java since lz4-java 1.8.1 and takes some fifteen times as long as the native "safe" one.
 */
class Packed {
  private static final net.jpountz.lz4.LZ4SafeDecompressor LZ4 =
      net.jpountz.lz4.LZ4Factory.fastestInstance().safeDecompressor();

  /* The lines; the last one without its newline, as the file sink writes one itself. */
  static byte[] unpack(byte[] packed) {
    if (packed.length == 0) {
      return packed;
    }
    java.nio.ByteBuffer sizes =
        java.nio.ByteBuffer.wrap(packed).order(java.nio.ByteOrder.LITTLE_ENDIAN);
    int size = -1;
    for (int at = 0; at < packed.length; at += 8 + sizes.getInt(at)) {
      size += sizes.getInt(at + 4) + 1;
    }
    byte[] lines = new byte[size];
    int end = 0;
    for (int at = 0; at < packed.length; at += 8 + sizes.getInt(at)) {
      if (at > 0) {
        lines[end++] = '\n';
      }
      end += LZ4.decompress(packed, at + 8, sizes.getInt(at), lines, end);
    }
    if (end != size) {
      throw new IllegalStateException(
          "packed lines hold " + end + " bytes and say that they hold " + size);
    }
    return lines;
  }
}
