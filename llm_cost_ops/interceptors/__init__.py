"""One concern a file: a pure policy above a short interceptor."""
