"""The options of each command: typed, checked and settled once; and where things lie."""
