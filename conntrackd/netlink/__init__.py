"""The kernel's side: numbers, messages, sockets and recordings of ctnetlink."""
