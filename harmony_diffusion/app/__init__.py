"""`harmony app`: the library in a browser, on this machine."""
