//go:build race

package main

// raceDetector says that these tests are compiled with it, and so slow.
const raceDetector = true
