"""What measures the service, and breaks it: none of it is part of the service."""
