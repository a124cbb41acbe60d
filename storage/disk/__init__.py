"""Pages and sessions in LMDB files: records, caps, leases, and the room that removing needs."""
