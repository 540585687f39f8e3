"""A campaign in one process or on many ranks: devices, messages, journal, shards. Importing it starts nothing."""
