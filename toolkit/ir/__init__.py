"""OpenVINO IR: conversion, inspection, conformance checks, sparse engine and packing."""
