package provisioner

import (
	"context"
	"iter"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller/metrics"
)

// plainDriver has no optional interface.
type plainDriver struct{ provisionErr, deleteErr error }

func (d *plainDriver) Provision(context.Context, controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if d.provisionErr != nil {
		return nil, controller.ProvisioningFinished, d.provisionErr
	}
	return &corev1.PersistentVolume{}, controller.ProvisioningFinished, nil
}

func (d *plainDriver) Delete(context.Context, *corev1.PersistentVolume) error { return d.deleteErr }

// richDriver has optional interfaces of both kinds.
type richDriver struct{ plainDriver }

func (*richDriver) ShouldDelete(context.Context, *corev1.PersistentVolume) bool { return false }
func (*richDriver) Volumes(context.Context) iter.Seq2[Record, error] {
	return func(func(Record, error) bool) {}
}
func (*richDriver) RecordOf(*corev1.PersistentVolume) Record { return Record{} }

func (*richDriver) Discard(context.Context, Record) error { return nil }

func TestRegistryFindsDriversByName(t *testing.T) {
	registry := NewRegistry()
	a, b := &plainDriver{}, &richDriver{}
	for name, driver := range map[string]Driver{"b.example.com": b, "a.example.com": a} {
		if err := registry.Register(name, driver); err != nil {
			t.Fatal(err)
		}
	}
	if got, ok := registry.Get("a.example.com"); !ok || got != a {
		t.Errorf("Get = %v, %v; want the driver registered", got, ok)
	}
	if _, ok := registry.Get("c.example.com"); ok || registry.Serves("c.example.com") {
		t.Error("a driver nobody registered was found")
	}
	if registry.Serves("") {
		t.Error("objects without a provisioner are served")
	}
	if !registry.Serves("b.example.com") {
		t.Error("a registered driver is not served")
	}
	if got, want := registry.Names(), []string{"a.example.com", "b.example.com"}; !slices.Equal(got, want) {
		t.Errorf("Names = %q, want %q", got, want)
	}
}

func TestRegistryRefusesTakenNames(t *testing.T) {
	registry := NewRegistry()
	first := &plainDriver{}
	if err := registry.Register("a.example.com", first); err != nil {
		t.Fatal(err)
	}
	err := registry.Register("a.example.com", &plainDriver{})
	if err == nil || !strings.Contains(err.Error(), "a.example.com") {
		t.Errorf("Register = %v, want an error that names the driver", err)
	}
	if got, _ := registry.Get("a.example.com"); got != first {
		t.Error("the refused driver has replaced the first one")
	}
}

func TestAsFindsOptionalInterfacesBehindWrappers(t *testing.T) {
	series := metrics.New("test")
	rich := &richDriver{}
	wrapped := Instrument(Instrument(rich, series), series)
	if guard, ok := As[controller.DeletionGuard](wrapped); !ok || guard != rich {
		t.Errorf("As[DeletionGuard] = %v, %v; want the wrapped driver", guard, ok)
	}
	if _, ok := As[Inventory](wrapped); !ok {
		t.Error("Inventory was not found through two wrappers")
	}
	if _, ok := As[Inventory](rich); !ok {
		t.Error("Inventory was not found on the driver itself")
	}
}

func TestAsDoesNotInventInterfaces(t *testing.T) {
	wrapped := Instrument(&plainDriver{}, metrics.New("test"))
	if _, ok := As[controller.Qualifier](wrapped); ok {
		t.Error("a Qualifier was found on a driver that is none")
	}
}
