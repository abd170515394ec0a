"""What requests, records, cards and filters must satisfy; each limit once. The client runs them too."""
