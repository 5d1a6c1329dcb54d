// Package wire holds the words that the hostpath driver and the node servers
// agree on, where the Container Storage Interface leaves them to the plugin:
// parameters, volume ids, volume contexts, and what CSI has no word for at all,
// which travels as gRPC metadata or as a detail of an error.
package wire

// PluginName is what the node server calls itself: the driver's name.
const PluginName = "hostpath.berth.storage"

// The keys of CreateVolumeRequest.parameters. Any other is refused.
const (
	// ParamPool is the name of the pool; DefaultPool when it is absent.
	ParamPool = "pool"
	// ParamPath is the directory's path in the pool; the volume's name when it
	// is absent. An empty one asks for a volume that an earlier call has made,
	// wherever it is, and makes none.
	ParamPath = "path"
	// ParamOnDelete is a directory.OnDelete; "delete" when it is absent.
	ParamOnDelete = "onDelete"
	// ParamExisting is ExistingRefuse, the default, or ExistingAdopt.
	ParamExisting = "existing"
	// ParamDryRun is DryRunNo, the default, or DryRunYes, which asks what would
	// become of the call, and has nothing done. It goes with ExistingAdopt only:
	// the answer is the volume that an earlier call has begun, a volume without an
	// id where there is a directory to adopt, and ReasonNoDirectory where there is
	// none. Whoever asks for ExistingAdopt gives it in any case: node servers that
	// don't know it make the directory that they don't find, and refuse the call.
	ParamDryRun = "berth.storage/dry-run"
	// ParamMode is the directory's mode in octal.
	ParamMode = "mode"
	// ParamUID and ParamGID are the directory's owner, decimal; whom the server
	// runs as when they are absent.
	ParamUID = "uid"
	ParamGID = "gid"
	// ParamQuota is "auto", the default, "required" or "none".
	ParamQuota = "quota"
	// ParamClass is the name of the StorageClass.
	ParamClass = "class"
	// ParamClaimUID is the UID of the claim, by which ownership is proved; the
	// volume's name when it is absent.
	ParamClaimUID = "berth.storage/claim-uid"
	// ParamClaimName and ParamClaimNamespace name the claim; the
	// external-provisioner of Kubernetes uses the same keys.
	ParamClaimName      = "csi.storage.k8s.io/pvc/name"
	ParamClaimNamespace = "csi.storage.k8s.io/pvc/namespace"
)

// Values of parameters.
const (
	DefaultPool    = "default"
	DefaultMode    = "0770"
	ExistingRefuse = "refuse"
	ExistingAdopt  = "adopt"
	DryRunNo       = "false"
	DryRunYes      = "true"
)

// The keys of Volume.volume_context.
const (
	ContextPool      = "pool"
	ContextPoolID    = "poolID"    // the id in the pool.json of ContextDirectory
	ContextDirectory = "directory" // the pool's directory that holds the volume, absolute
	ContextPath      = "path"      // of the volume, below it
	ContextVolume    = "volume"    // the PersistentVolume's name
	ContextOnDelete  = "onDelete"
	ContextQuota     = "quota" // QuotaEnforced, or why it is not
	ContextClaim     = "claim" // namespace/name
	ContextClaimUID  = "claimUID"
	ContextCreated   = "created" // RFC 3339
	ContextAdopted   = "adopted" // AdoptedYes, or absent
	// ContextRights is there when the directory has not got the mode or the owner
	// that was asked for, and says what differs.
	ContextRights = "rights"
)

// Values of ContextQuota.
const (
	// QuotaEnforced says that the filesystem holds the volume to its size. Any
	// other value is "none: " and the reason why it does not.
	QuotaEnforced = "enforced"
)

// AdoptedYes is the value of ContextAdopted of a directory that was there before the
// volume.
const AdoptedYes = "true"

// The keys of gRPC metadata. Those in -bin may hold any bytes.
const (
	// MetaNewPool answers ReasonNewPool, in the next CreateVolume: an absolute
	// directory that may become a pool of its own, once for each.
	MetaNewPool = "berth-new-pool-bin"
	// MetaRefusedPool is the opposite: a NUL stands between the directory and
	// the reason why it must not.
	MetaRefusedPool = "berth-refused-pool-bin"
	// MetaClaimUID, MetaPath and MetaSource are what a PersistentVolume says of
	// its directory: whose it is, where in the pool, and where on the node. With
	// DeleteVolume and ControllerExpandVolume they are compared with the
	// ownership marker, so that a refusal can say what differs.
	MetaClaimUID = "berth-claim-uid-bin"
	MetaPath     = "berth-path-bin"
	MetaSource   = "berth-source-bin"
	// MetaOnDelete is the directory.OnDelete of the PersistentVolume, which an
	// administrator may have edited. What keeps more, it or the marker, is done.
	MetaOnDelete = "berth-on-delete"
	// MetaIfEmpty makes DeleteVolume take back the volume whose directory on the
	// node is the value: it is removed if it is empty and was made for the
	// volume, let go if it was adopted, and ReasonNotEmpty is the answer
	// otherwise.
	MetaIfEmpty = "berth-if-empty-bin"
	// MetaPoolID is the id of the pool that the volume of a call lies in. A
	// directory that holds another pool by now is not touched.
	MetaPoolID = "berth-pool-id-bin"
	// MetaAskForPools makes ControllerGetCapabilities answer with MetaPools, in
	// the header: a PoolReport each. ListVolumes always does, with those that a
	// page is about.
	MetaAskForPools = "berth-ask-for-pools"
	MetaPools       = "berth-pools-bin"
)

// ManifestNode is the key of the node's name in what GetPluginInfo tells, so that
// a caller can see whether it has reached the node it meant.
const ManifestNode = "berth.storage/node"
