"""Data: reads rows from files and data sets, converts rows to examples, and encodes examples as samples."""
