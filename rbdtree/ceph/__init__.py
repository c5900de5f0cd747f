"""Ceph behind the ports: the only package that imports rados and rbd."""
