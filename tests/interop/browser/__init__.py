"""Pages as a browser shows them; needs Chromium (make browser-test)."""
