from greensock.core._sys cimport accept, monotonic
