"""What a store can do, parted as `cmdsvc.store.sql` is. What holds for all of it is at `Store`."""
