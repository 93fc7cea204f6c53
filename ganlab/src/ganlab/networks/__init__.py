"""Networks: plain modules with explicit arguments; they know neither tasks nor losses."""
