package main

import (
	"math"
	"slices"
	"time"
)

// percentile returns the smallest of sorted that at least p percent of it do
// not exceed (nearest rank); 0 of nothing.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median returns the middle value; 0 of nothing.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}

// perClaim returns count for each of n claims; 0 when there are none.
func perClaim(count, n int) float64 {
	if n == 0 {
		return 0
	}
	return float64(count) / float64(n)
}
