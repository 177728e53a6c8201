"""The interface of the service, and the code that protoc makes of it (``make proto``)."""
