"""Adapters that plan our problems with other libraries; each library is optional."""
