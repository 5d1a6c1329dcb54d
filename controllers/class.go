package controllers

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

// The annotations that make a class the cluster's default, and the one value
// that counts (kubernetes pkg/volume/util/storageclass.go, IsDefaultAnnotation).
const (
	annDefaultClass     = "storageclass.kubernetes.io/is-default-class"
	annBetaDefaultClass = "storageclass.beta.kubernetes.io/is-default-class"
)

// classChoice is which class a claim asks for.
type classChoice struct {
	// Name is the class's name; "" when the claim asks for no dynamic
	// provisioning, or for the default class while there is none.
	Name string
	// Class is the class of that name; nil when there is none yet.
	Class *storagev1.StorageClass
	// Assign says that the claim names no class and has to be given Class
	// before a volume can bind to it.
	Assign bool
}

// chooseClass resolves the class of claim among classes.
//
// The annotation volume.beta.kubernetes.io/storage-class, even empty, wins over
// spec.storageClassName; an empty name means no dynamic provisioning; no name
// at all means the default class (component-helpers, GetPersistentVolumeClaimClass
// and PersistentVolumeClaimHasClass).
func chooseClass(claim *corev1.PersistentVolumeClaim, classes []*storagev1.StorageClass) classChoice {
	if !volumehelpers.PersistentVolumeClaimHasClass(claim) {
		class := defaultClass(classes)
		if class == nil {
			return classChoice{}
		}
		return classChoice{Name: class.Name, Class: class, Assign: true}
	}
	name := volumehelpers.GetPersistentVolumeClaimClass(claim)
	if name == "" {
		return classChoice{}
	}
	i := slices.IndexFunc(classes, func(c *storagev1.StorageClass) bool { return c.Name == name })
	if i < 0 {
		return classChoice{Name: name}
	}
	return classChoice{Name: name, Class: classes[i]}
}

// defaultClass returns the default class among classes: of those marked as
// default the newest, and of equally old ones the first by name, as
// kubernetes pkg/volume/util/storageclass.go, GetDefaultClass, has it. It
// returns nil when none is marked.
func defaultClass(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	var best *storagev1.StorageClass
	for _, class := range classes {
		if isDefaultClass(class) && (best == nil || newerOrFirst(class, best) < 0) {
			best = class
		}
	}
	return best
}

func newerOrFirst(a, b *storagev1.StorageClass) int {
	return cmp.Or(
		b.CreationTimestamp.Compare(a.CreationTimestamp.Time),
		cmp.Compare(a.Name, b.Name),
	)
}

func isDefaultClass(class *storagev1.StorageClass) bool {
	return class.Annotations[annDefaultClass] == "true" || class.Annotations[annBetaDefaultClass] == "true"
}

func waitsForConsumer(class *storagev1.StorageClass) bool {
	return class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}
