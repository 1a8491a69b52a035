"""Stub, about to be replaced."""


class Reference:
    def __init__(self, app_name: str) -> None:
        self.document, self.page, self.csp = b"{}", b"<html></html>", "default-src 'none'"
