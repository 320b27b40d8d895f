"""The process that serves every editor window of a user: socket, scheduler, held documents."""
