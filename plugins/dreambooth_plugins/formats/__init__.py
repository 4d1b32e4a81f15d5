"""Names and layouts of files that other tools read and write."""
