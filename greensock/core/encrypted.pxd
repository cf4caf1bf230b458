from greensock.core._sys cimport read, write
