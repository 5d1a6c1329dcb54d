package controllers

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const (
	defaultClassKey     = "storageclass.kubernetes.io/is-default-class"
	defaultClassBetaKey = "storageclass.beta.kubernetes.io/is-default-class"
	legacyClassKey      = "volume.beta.kubernetes.io/storage-class"
)

// newClass returns a class that was created the given number of seconds after
// some epoch, with annotations as key, value, key, value.
func newClass(name string, created int, annotations ...string) *storagev1.StorageClass {
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{
			Name:              name,
			CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000+int64(created), 0)),
			Annotations:       map[string]string{},
		},
		Provisioner: "ours.example.com",
	}
	for i := 0; i < len(annotations); i += 2 {
		class.Annotations[annotations[i]] = annotations[i+1]
	}
	return class
}

func TestChooseClass(t *testing.T) {
	fast, slow := newClass("fast", 0), newClass("slow", 0)
	standard := newClass("standard", 0, defaultClassKey, "true")
	all := []*storagev1.StorageClass{fast, slow, standard}
	noDefault := []*storagev1.StorageClass{fast, slow}

	for name, tt := range map[string]struct {
		spec    *string
		legacy  *string
		classes []*storagev1.StorageClass
		want    classChoice
	}{
		"the spec names a class":                            {spec: ptr.To("fast"), classes: all, want: classChoice{Name: "fast", Class: fast}},
		"the legacy annotation names a class":               {legacy: ptr.To("fast"), classes: all, want: classChoice{Name: "fast", Class: fast}},
		"the legacy annotation wins over the spec":          {spec: ptr.To("fast"), legacy: ptr.To("slow"), classes: all, want: classChoice{Name: "slow", Class: slow}},
		"the legacy annotation wins even when empty":        {spec: ptr.To("fast"), legacy: ptr.To(""), classes: all, want: classChoice{}},
		"an empty annotation is not the default class":      {legacy: ptr.To(""), classes: all, want: classChoice{}},
		"an empty class name never provisions":              {spec: ptr.To(""), classes: all, want: classChoice{}},
		"no class name means the default class":             {classes: all, want: classChoice{Name: "standard", Class: standard, Assign: true}},
		"no class name waits while there is no default":     {classes: noDefault, want: classChoice{}},
		"a class that does not exist yet keeps its name":    {spec: ptr.To("later"), classes: all, want: classChoice{Name: "later"}},
		"the default does not stand in for a missing class": {spec: ptr.To("later"), classes: []*storagev1.StorageClass{standard}, want: classChoice{Name: "later"}},
		"naming the default class is no assignment":         {spec: ptr.To("standard"), classes: all, want: classChoice{Name: "standard", Class: standard}},
		"there are no classes at all":                       {classes: nil, want: classChoice{}},
	} {
		t.Run(name, func(t *testing.T) {
			claim := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: tt.spec}}
			if tt.legacy != nil {
				claim.Annotations = map[string]string{legacyClassKey: *tt.legacy}
			}
			if got := chooseClass(claim, tt.classes); got != tt.want {
				t.Errorf("chooseClass = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestDefaultClass(t *testing.T) {
	for name, tt := range map[string]struct {
		classes []*storagev1.StorageClass
		want    string
	}{
		"the annotation marks the default":         {[]*storagev1.StorageClass{newClass("a", 0), newClass("b", 0, defaultClassKey, "true")}, "b"},
		"the beta annotation marks the default":    {[]*storagev1.StorageClass{newClass("a", 0), newClass("b", 0, defaultClassBetaKey, "true")}, "b"},
		"the beta annotation suffices":             {[]*storagev1.StorageClass{newClass("a", 0, defaultClassKey, "false", defaultClassBetaKey, "true")}, "a"},
		"both annotations are one mark":            {[]*storagev1.StorageClass{newClass("a", 0, defaultClassKey, "true", defaultClassBetaKey, "true")}, "a"},
		"only exactly true counts, not True":       {[]*storagev1.StorageClass{newClass("a", 0, defaultClassKey, "True")}, ""},
		"only exactly true counts, not yes":        {[]*storagev1.StorageClass{newClass("a", 0, defaultClassKey, "yes")}, ""},
		"only exactly true counts, not 1":          {[]*storagev1.StorageClass{newClass("a", 0, defaultClassBetaKey, "1")}, ""},
		"only exactly true counts, without spaces": {[]*storagev1.StorageClass{newClass("a", 0, defaultClassKey, " true")}, ""},
		"false unmarks":                            {[]*storagev1.StorageClass{newClass("a", 0, defaultClassKey, "false")}, ""},
		"the newest wins":                          {[]*storagev1.StorageClass{newClass("a", 1, defaultClassKey, "true"), newClass("b", 2, defaultClassKey, "true"), newClass("c", 0, defaultClassKey, "true")}, "b"},
		"the newest wins, unmarked ones aside":     {[]*storagev1.StorageClass{newClass("a", 1, defaultClassKey, "true"), newClass("b", 2)}, "a"},
		"the newest wins whichever annotation":     {[]*storagev1.StorageClass{newClass("a", 1, defaultClassKey, "true"), newClass("b", 2, defaultClassBetaKey, "true")}, "b"},
		"the name breaks a tie, ascending":         {[]*storagev1.StorageClass{newClass("b", 1, defaultClassKey, "true"), newClass("a", 1, defaultClassKey, "true"), newClass("c", 1, defaultClassKey, "true")}, "a"},
		"no class is no default":                   {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if class := defaultClass(tt.classes); class != nil {
				got = class.Name
			}
			if got != tt.want {
				t.Errorf("defaultClass = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWaitsForConsumer(t *testing.T) {
	class := newClass("a", 0)
	if waitsForConsumer(class) {
		t.Error("a class without a binding mode waits; the API's default is Immediate")
	}
	class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingImmediate)
	if waitsForConsumer(class) {
		t.Error("an Immediate class waits")
	}
	class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)
	if !waitsForConsumer(class) {
		t.Error("a WaitForFirstConsumer class does not wait")
	}
}
