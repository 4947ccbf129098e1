"""Data: files and data sets to rows, rows to their normal form, normal forms to samples."""
