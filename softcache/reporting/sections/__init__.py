"""One file a section of the report. A file is a section unless its name begins with an underscore."""
