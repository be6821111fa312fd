"""Models at work: opened with the format they were trained on, and writing replies."""
