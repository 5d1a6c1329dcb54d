package node

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berth-storage/berth/provisioner/directory"
)

// Options configure a Server.
type Options struct {
	// NodeName is the Kubernetes Node this process runs on.
	NodeName string
	// Pools maps the names of pools to their directories, absolute ones that
	// don't lie in each other.
	Pools map[string][]string
	// Limits say how much of a filesystem volumes may be promised.
	Limits Limits
	// Quota holds volumes to their sizes where a filesystem can. When nil, none
	// is held.
	Quota directory.Quota
	// RequireMount refuses directories that are not the root of a filesystem.
	RequireMount bool
	// Filesystem, when set, stands between the pools and their directories, for
	// tests of what other filesystems do.
	Filesystem func(directory.Filesystem) directory.Filesystem
	// Version is what the server says its version is.
	Version string
	Log     logr.Logger
}

// Limits say how much of a filesystem may be promised to volumes. The zero value
// promises anything that a filesystem could hold.
type Limits struct {
	// Reserve is what has to stay free.
	Reserve Reserve
	// Overcommit is how often the filesystem's size may be promised in all: 1
	// promises each byte once. At 0 the sizes of other volumes do not count.
	Overcommit float64
}

// DefaultLimits are those of the command line.
var DefaultLimits = Limits{Reserve: Reserve{Percent: 5}, Overcommit: 1}

// Reserve is a part of a filesystem.
type Reserve struct {
	// Bytes counts when it is not 0, and Percent of the filesystem otherwise.
	Bytes   uint64
	Percent float64
}

// of returns the reserve of a filesystem of total bytes.
func (r Reserve) of(total uint64) int64 {
	if r.Bytes > 0 {
		return int64(min(r.Bytes, math.MaxInt64))
	}
	return int64(float64(total) * r.Percent / 100)
}

// String writes what ParseReserve reads.
func (r Reserve) String() string {
	if r.Bytes > 0 {
		return bytes(int64(min(r.Bytes, math.MaxInt64)))
	}
	return strconv.FormatFloat(r.Percent, 'g', -1, 64) + "%"
}

// ParseReserve reads a quantity of bytes, such as 10Gi, or a percentage, such
// as 5%.
func ParseReserve(s string) (Reserve, error) {
	const fix = "write a size such as 10Gi, or a share of the filesystem such as 5%"
	if number, ok := strings.CutSuffix(s, "%"); ok {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || !(percent >= 0 && percent < 100) {
			return Reserve{}, fmt.Errorf("%q is no share of a filesystem: %s", s, fix)
		}
		return Reserve{Percent: percent}, nil
	}
	size, err := resource.ParseQuantity(s)
	if err != nil || size.Sign() < 0 {
		return Reserve{}, fmt.Errorf("%q is no size: %s", s, fix)
	}
	return Reserve{Bytes: uint64(size.Value())}, nil //nolint:gosec // not negative
}

// ParsePool reads the value of the flag --pool: a name, "=" and an absolute
// directory.
func ParsePool(s string) (name, path string, err error) {
	name, path, ok := strings.Cut(s, "=")
	if !ok {
		return "", "", fmt.Errorf("pool %q: write name=/directory", s)
	}
	return name, path, checkDirectory(name, path)
}

// ParsePools reads the values of the flag --pool. A name that comes again has one
// more directory.
func ParsePools(values []string) (map[string][]string, error) {
	pools := map[string][]string{}
	for _, value := range values {
		name, path, err := ParsePool(value)
		if err != nil {
			return nil, fmt.Errorf("--pool=%s: %w", value, err)
		}
		pools[name] = append(pools[name], path)
	}
	return pools, nil
}

func checkDirectory(pool, path string) error {
	if problems := validation.IsDNS1123Label(pool); len(problems) > 0 {
		return fmt.Errorf("pool name %q: %s", pool, strings.Join(problems, ", "))
	}
	if err := directory.CheckBase(path); err != nil {
		return fmt.Errorf("pool %s: %w", pool, err)
	}
	return nil
}

// check refuses options that can't work.
func (o Options) check() error {
	switch {
	case o.NodeName == "":
		return errors.New("no node name")
	case len(o.Pools) == 0:
		return errors.New("no pool is configured: give --pool name=/directory")
	case o.Limits.Overcommit < 0 || math.IsNaN(o.Limits.Overcommit) || math.IsInf(o.Limits.Overcommit, 0):
		return fmt.Errorf("overcommit %g: want 0 or more", o.Limits.Overcommit)
	}
	type use struct{ pool, path string }
	var seen []use
	for _, pool := range slices.Sorted(maps.Keys(o.Pools)) {
		if len(o.Pools[pool]) == 0 {
			return fmt.Errorf("pool %s has no directory", pool)
		}
		for _, path := range o.Pools[pool] {
			if err := checkDirectory(pool, path); err != nil {
				return err
			}
			for _, other := range seen {
				if within(path, other.path) || within(other.path, path) {
					return fmt.Errorf("pools %s and %s must not share a directory: %s, %s", other.pool, pool, other.path, path)
				}
			}
			seen = append(seen, use{pool, path})
		}
	}
	return nil
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool { return strings.HasPrefix(path+"/", dir+"/") }

// bytes writes a size as Kubernetes does.
func bytes(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }
