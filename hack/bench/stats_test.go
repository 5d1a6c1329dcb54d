package main

import (
	"testing"
	"time"
)

func TestPercentileIsNearestRank(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, tc := range []struct {
		name   string
		sorted []time.Duration
		p      float64
		want   time.Duration
	}{
		{"of nothing", nil, 50, 0},
		{"of one", []time.Duration{7}, 99, 7},
		{"lowest", hundred, 0, 1},
		{"median", hundred, 50, 50},
		{"p99", hundred, 99, 99},
		{"highest", hundred, 100, 100},
		{"rounds up", []time.Duration{1, 2, 3}, 34, 2},
		{"median of even", []time.Duration{1, 2, 3, 4}, 50, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := percentile(tc.sorted, tc.p); got != tc.want {
				t.Errorf("percentile(%g) = %d, want %d", tc.p, got, tc.want)
			}
		})
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 2, 9}, 3},
	} {
		if got := median(tc.values); got != tc.want {
			t.Errorf("median(%v) = %g, want %g", tc.values, got, tc.want)
		}
	}
}

func TestPerClaimOfNone(t *testing.T) {
	if got := perClaim(3, 0); got != 0 {
		t.Errorf("perClaim(3, 0) = %g, want 0", got)
	}
}
