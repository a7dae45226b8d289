"""How other libraries are called: always by the part of them that does what our operator does, parameters given."""
