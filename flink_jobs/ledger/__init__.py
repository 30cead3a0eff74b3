"""The books: audited from the stream's rows, recounted from the output, reported."""
