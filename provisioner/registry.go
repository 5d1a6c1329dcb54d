package provisioner

import (
	"fmt"
	"maps"
	"slices"
)

// Registry holds the drivers of a process by name. The name is what a
// StorageClass gives as its provisioner. A Registry is filled before the
// controllers start and only read afterwards.
type Registry struct {
	drivers map[string]Driver
}

// NewRegistry returns an empty Registry.
func NewRegistry() *Registry {
	return &Registry{drivers: map[string]Driver{}}
}

// Register adds driver under name. It fails when the name is taken.
func (r *Registry) Register(name string, driver Driver) error {
	if _, taken := r.drivers[name]; taken {
		return fmt.Errorf("register driver %q: a driver of that name exists", name)
	}
	r.drivers[name] = driver
	return nil
}

// Get returns the driver registered under name.
func (r *Registry) Get(name string) (Driver, bool) {
	driver, ok := r.drivers[name]
	return driver, ok
}

// Serves reports whether a driver is registered under name.
func (r *Registry) Serves(name string) bool {
	_, ok := r.drivers[name]
	return ok
}

// Names returns the names of all drivers, sorted.
func (r *Registry) Names() []string {
	return slices.Sorted(maps.Keys(r.drivers))
}

// As returns driver, or the driver it wraps, as a T: the way to find an
// optional interface behind instrumentation. It follows Unwrap methods as
// errors.As does.
func As[T any](driver Driver) (T, bool) {
	for {
		if t, ok := driver.(T); ok {
			return t, true
		}
		wrapper, ok := driver.(interface{ Unwrap() Driver })
		if !ok {
			var none T
			return none, false
		}
		driver = wrapper.Unwrap()
	}
}
