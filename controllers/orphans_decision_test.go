package controllers

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-storage/berth/provisioner"
)

func TestCompareStorage(t *testing.T) {
	at := func(place, pool, path string) provisioner.Record {
		return provisioner.Record{Place: place, Pool: pool, Path: path}
	}
	for name, tt := range map[string]struct {
		record, said provisioner.Record
		want         storageState
	}{
		"where it says":                             {at("n1/p", "X", "/p"), at("n1/p", "X", "/p"), storageHere},
		"where it says, without ids":                {at("n1/p", "", "/p"), at("n1/p", "", "/p"), storageHere},
		"its pool, on another node":                 {at("n2/p", "X", "/p"), at("n1/p", "X", "/p"), storageMoved},
		"its pool, at another path":                 {at("n2/q", "X", "/q"), at("n1/p", "X", "/p"), storageMoved},
		"another pool, on another node":             {at("n2/p", "Y", "/p"), at("n1/p", "X", "/p"), storageStray},
		"its path, and it does not say its pool":    {at("n2/p", "Y", "/p"), at("n1/p", "", "/p"), storageLikely},
		"its path, and the agent says no pool":      {at("n2/p", "", "/p"), at("n1/p", "X", "/p"), storageLikely},
		"another path, and nobody says a pool":      {at("n2/q", "", "/q"), at("n1/p", "", "/p"), storageStray},
		"no path, in another place, without a pool": {at("a", "", ""), at("b", "", ""), storageStray},
	} {
		t.Run(name, func(t *testing.T) {
			if got := compareStorage(tt.record, tt.said); got != tt.want {
				t.Errorf("compareStorage = %d, want %d", got, tt.want)
			}
		})
	}
}

func TestAdoptable(t *testing.T) {
	named := func(volume, place string) misplaced {
		return misplaced{provisioner.Record{Volume: volume, Place: place}, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume}}}
	}
	for name, tt := range map[string]struct {
		seen survey
		want []string
	}{
		"the only one":                    {survey{elsewhere: []misplaced{named("v", "n2/p")}}, []string{"v"}},
		"not beside the volume's own":     {survey{elsewhere: []misplaced{named("v", "n2/p")}, found: map[string]string{"v": ""}}, nil},
		"not one of two":                  {survey{elsewhere: []misplaced{named("v", "n2/p"), named("v", "n3/p")}}, nil},
		"not while something is not read": {survey{elsewhere: []misplaced{named("v", "n2/p")}, unread: []string{"n1/"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, m := range tt.seen.adoptable() {
				got = append(got, m.volume.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("adoptable (-want +got):\n%s", diff)
			}
		})
	}
}
