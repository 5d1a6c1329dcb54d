package nfs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/request"
)

// Name is the driver's name: the provisioner field of its StorageClasses.
const Name = "nfs.berth.storage"

// DefaultAnswerTimeout is how long a server may be silent.
const DefaultAnswerTimeout = 5 * time.Second

// DefaultPurgeRate is how many files a second are removed from a share's trash:
// few enough that a server has time for others.
const DefaultPurgeRate rate.Limit = 500

// adoptionCounts is how long it counts that a share does not have a directory that is
// to be adopted.
const adoptionCounts = time.Minute

// Options configure a Driver.
type Options struct {
	// Mounts maps shares, by server and path alone, to the absolute directories
	// where they are mounted. The driver reaches all others by itself.
	Mounts map[Share]string
	// Classes and Volumes return the classes and the volumes of this driver that
	// Kubernetes has, from which it knows on which shares it has volumes. When
	// nil, it knows of those only that it was asked for.
	Classes func(ctx context.Context) ([]storagev1.StorageClass, error)
	Volumes func(ctx context.Context) ([]Volume, error)
	// NamedBy returns the name of a PersistentVolume other than except that a claim
	// has or may get, and that names path in share, or one in share above it, or one
	// inside it; "" for none. Such a directory is not adopted. When nil, nobody is asked.
	NamedBy func(ctx context.Context, share Share, path, except string) (volume string, err error)
	// Cluster returns an id of the Kubernetes cluster, which its shares are
	// marked with. When nil, they are not.
	Cluster func(ctx context.Context) (string, error)
	// AnswerTimeout is how long a server may be silent; 0 means
	// DefaultAnswerTimeout.
	AnswerTimeout time.Duration
	// PurgeRate limits how many files a second are removed from a share's
	// trash; 0 means DefaultPurgeRate.
	PurgeRate rate.Limit
	// Clock is the time of retries; nil means the real one.
	Clock clock.Clock
	Log   logr.Logger
}

// Driver provisions directories on NFS shares.
type Driver struct {
	options Options
	shares  *shares
}

var (
	_ provisioner.Driver           = (*Driver)(nil)
	_ provisioner.Expander         = (*Driver)(nil)
	_ provisioner.Inventory        = (*Driver)(nil)
	_ provisioner.Noticer          = (*Driver)(nil)
	_ provisioner.BackgroundWorker = (*Driver)(nil)
)

// New returns the driver. It does not talk to any server before it is asked for
// a volume.
func New(o Options) (*Driver, error) {
	for share, path := range o.Mounts {
		if err := directory.CheckBase(path); err != nil {
			return nil, fmt.Errorf("nfs driver: mount of %s: %w", share, err)
		}
	}
	if o.AnswerTimeout == 0 {
		o.AnswerTimeout = DefaultAnswerTimeout
	}
	if o.PurgeRate == 0 {
		o.PurgeRate = DefaultPurgeRate
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return &Driver{options: o, shares: newShares(o)}, nil
}

// Provision makes the directory for a claim and describes it as a
// PersistentVolume.
func (d *Driver) Provision(ctx context.Context, opts controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	volume, err := d.provision(ctx, opts)
	return volume, controller.ProvisioningFinished, err
}

func (d *Driver) provision(ctx context.Context, opts controller.ProvisionOptions) (*corev1.PersistentVolume, error) {
	params, err := parseParameters(opts.StorageClass)
	if err != nil {
		return nil, err
	}
	if err := request.CheckClaim(opts.PVC); err != nil {
		return nil, err
	}
	if err := params.CheckAdopt(); err != nil {
		return nil, err
	}
	share, err := d.shares.get(params.share)
	if err != nil {
		return nil, err
	}
	path, patternErr := params.Path(opts)
	marker, err := call(ctx, share, func(ctx context.Context) (directory.Marker, error) {
		path := path
		if patternErr != nil {
			// Labels may have changed since an earlier call chose a path, which
			// counts.
			chosen, err := share.Lookup(ctx, opts.PVName)
			if err != nil {
				return directory.Marker{}, patternErr
			}
			path = chosen.Path
		}
		if err := d.keepClearOfOthers(ctx, params.share, path); err != nil {
			return directory.Marker{}, err
		}
		if err := d.refuseNamed(ctx, params, path, opts.PVName); err != nil {
			return directory.Marker{}, err
		}
		return share.Create(ctx, params.Spec(opts, path))
	})
	if errors.Is(err, request.ErrNamed) {
		return nil, &provisioner.UnavailableError{RetryAfter: request.NamedRetry, Err: err}
	}
	if errors.Is(err, directory.ErrNoDirectory) {
		// Somebody may bring it.
		return nil, &provisioner.UnavailableError{RetryAfter: adoptionCounts, Err: err}
	}
	if err != nil {
		return nil, err
	}
	return describe(opts, params, marker), nil
}

// Notice says whether the directory of volume was made or adopted, and that it has
// other rights than its class asks for.
func (d *Driver) Notice(volume *corev1.PersistentVolume) string {
	notice := request.NoticeOrigin(volume)
	if rights := request.NoticeRights(volume); rights != "" {
		notice += "; " + rights
	}
	return notice
}

// refuseNamed refuses to adopt what is another volume's: its marker may be lost.
func (d *Driver) refuseNamed(ctx context.Context, params parameters, path, volume string) error {
	if !params.Adopt || d.options.NamedBy == nil {
		return nil
	}
	at := params.share.join(path)
	other, err := d.options.NamedBy(ctx, params.share, path, volume)
	if err != nil {
		return fmt.Errorf("adopt %s of %s: %w", at, params.share.Server, err)
	}
	if other == "" {
		return nil
	}
	return request.RefuseNamed(at, other)
}

// keepClearOfOthers refuses a path that is, holds, or lies in another share of
// the same server.
func (d *Driver) keepClearOfOthers(ctx context.Context, share Share, path string) error {
	others, err := d.ofClasses(ctx)
	if err != nil {
		return err
	}
	for _, met := range d.shares.all() {
		others = append(others, met.Share)
	}
	for _, other := range others {
		rel, ok := share.below(other)
		if ok && rel != "" && (within(path, rel) || within(rel, path)) {
			return provisioner.Infeasible("StorageClass parameter pathPattern", path,
				"the share %s of another class is there; choose a pathPattern that keeps clear of it", other)
		}
	}
	return nil
}

// Expand records the new size. NFS has no way to enforce one.
func (d *Driver) Expand(ctx context.Context, volume *corev1.PersistentVolume, size int64) (provisioner.Expansion, error) {
	share, expect, err := d.find(volume)
	if err != nil {
		return provisioner.Expansion{}, fmt.Errorf("expand volume %s: %w", volume.Name, err)
	}
	const note = "the size is not enforced: volumes of an NFS share have its space in common"
	return provisioner.Expansion{Note: note}, share.do(ctx, func(ctx context.Context) error { return share.Resize(ctx, volume.Name, expect, size) })
}

// Delete moves the volume's directory to the trash or the archive, or lets it
// go, after the marker has confirmed everything that the PersistentVolume says.
func (d *Driver) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	if driver := volume.Annotations[request.AnnDriver]; driver != Name {
		return &controller.IgnoredError{Reason: fmt.Sprintf("volume %s has annotation %s %q, not %q", volume.Name, request.AnnDriver, driver, Name)}
	}
	share, expect, err := d.find(volume)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w; not touching anything", volume.Name, err)
	}
	return share.do(ctx, func(ctx context.Context) error { return share.Delete(ctx, volume.Name, expect) })
}

// find returns where volume is, and what has to be true of its directory.
func (d *Driver) find(volume *corev1.PersistentVolume) (*share, directory.Expectation, error) {
	at, err := Describes(volume)
	if err != nil {
		return nil, directory.Expectation{}, err
	}
	expect, err := request.Expectation(volume)
	if err != nil {
		return nil, directory.Expectation{}, err
	}
	share, err := d.shares.get(at.Share)
	return share, expect, err
}

// RecordOf returns the record of volume, which is found by its name. Its place is
// what pods see.
func (d *Driver) RecordOf(volume *corev1.PersistentVolume) provisioner.Record {
	record := provisioner.Record{Volume: volume.Name}
	if source := volume.Spec.NFS; source != nil {
		record.Path = source.Path
		record.Place = Share{Server: source.Server, Path: source.Path}.String()
	}
	return record
}

// Discard drops a volume, as long as its directory is empty. It looks for the
// volume on every share, since its name does not say where it is, and fails
// when it is nowhere and a share can't be asked.
func (d *Driver) Discard(ctx context.Context, record provisioner.Record) error {
	all, err := d.open(ctx)
	if err != nil {
		return err
	}
	found := make(chan *share, len(all))
	search, stop := context.WithCancel(ctx)
	defer stop()
	group := errgroup.Group{}
	failed := make([]error, len(all))
	for i, s := range all {
		group.Go(func() error {
			failed[i] = s.do(search, func(ctx context.Context) error {
				has, err := s.Has(ctx, record.Volume)
				if has {
					found <- s
					stop()
				}
				return err
			})
			return nil
		})
	}
	_ = group.Wait()
	select {
	case s := <-found:
		return s.do(ctx, func(ctx context.Context) error { return s.Discard(ctx, record.Volume) })
	default:
		return errors.Join(failed...)
	}
}

// Volumes yields what the shares have records of. A share that can't be read does
// not hide the others.
func (d *Driver) Volumes(ctx context.Context) iter.Seq2[provisioner.Record, error] {
	return func(yield func(provisioner.Record, error) bool) {
		all, err := d.open(ctx)
		if err != nil {
			yield(provisioner.Record{}, err)
			return
		}
		for _, s := range all {
			records, err := s.records(ctx)
			for _, record := range records {
				record.Pool = s.ID()
				record.Path = s.join(record.Path)
				record.Place = Share{Server: s.Server, Path: record.Path}.String()
				if !yield(record, nil) {
					return
				}
			}
			if err == nil {
				continue
			}
			below := Share{Server: s.Server, Path: strings.TrimSuffix(s.Path, "/") + "/"}.String()
			if !yield(provisioner.Record{}, &provisioner.UnreadError{Place: below, Err: fmt.Errorf("list the volumes of %s: %w", s.Share, err)}) {
				return
			}
		}
	}
}

// records reads what a share has records of, as far as it can.
func (s *share) records(ctx context.Context) ([]provisioner.Record, error) {
	return callFor(ctx, s, longPatience, func(ctx context.Context) ([]provisioner.Record, error) {
		var records []provisioner.Record
		for record, err := range s.Volumes(ctx) {
			if err != nil {
				return records, err
			}
			records = append(records, record)
		}
		return records, nil
	})
}

// Run empties the shares' trash.
func (d *Driver) Run(ctx context.Context) error {
	if _, err := d.open(ctx); err != nil && ctx.Err() == nil {
		d.options.Log.Error(err, "Some shares are not known until a claim asks for them")
	}
	return d.shares.run(ctx)
}

// Close gives up the connections. The driver must not be in use.
func (d *Driver) Close() error { return d.shares.close() }

// open returns all shares that are known of, by Kubernetes or from earlier
// calls.
func (d *Driver) open(ctx context.Context) ([]*share, error) {
	known, err := d.ofClasses(ctx)
	if err != nil {
		return nil, err
	}
	if d.options.Volumes != nil {
		volumes, err := d.options.Volumes(ctx)
		if err != nil {
			return nil, fmt.Errorf("list volumes: %w", err)
		}
		for _, v := range volumes {
			known = append(known, v.Share)
		}
	}
	for _, s := range known {
		if _, err := d.shares.get(s); err != nil {
			return nil, err
		}
	}
	return d.shares.all(), nil
}

// ofClasses returns the shares that classes name.
func (d *Driver) ofClasses(ctx context.Context) ([]Share, error) {
	if d.options.Classes == nil {
		return nil, nil
	}
	classes, err := d.options.Classes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list classes: %w", err)
	}
	var shares []Share
	for i := range classes {
		if params, err := parseParameters(&classes[i]); err == nil {
			shares = append(shares, params.share)
		}
	}
	return shares, nil
}
