"""The border to the JVM: the wire format, and the steps that are Java source."""
