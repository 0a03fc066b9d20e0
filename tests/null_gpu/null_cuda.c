/* A CUDA runtime whose kernels do nothing: device memory is host memory, and calls that cost time are counted.
 *
 * It is loaded before torch's own libraries and answers the calls whose results torch reads. build.py adds a function
 * that returns success for every other call. Results of kernels are whatever the memory held; copies are real.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* driver_types.h is written for nvcc; these make it plain C. */
#define __CUDA_RUNTIME_API_H__
#define __host__
#define __device__
#define CUDARTAPI
#define __device_builtin__
#define __cuda_builtin_vector_align8
#define __builtin_align__(x)
#define __align__(x)
#define __CUDA_INTERNAL_SKIP_CPP_HEADERS__
#include "driver_types.h"

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_WHILE_CAPTURING = 900 };
enum { HEADER_BYTES = 4096, HANDLE_BYTES = 256 };

/* Counters, in the order that counters.py names them. */
enum { LAUNCHES, SYNCHRONISATIONS, UPLOADS, UPLOADED_BYTES, DOWNLOADS, DOWNLOADED_BYTES, PRODUCTS, NETWORK_CALLS, REPLAYS, COUNTERS };
static long counters[COUNTERS];
static size_t total_bytes = 80ul * 1000 * 1000 * 1000, used_bytes;

int null_cuda_counts(long *out) {
  memcpy(out, counters, sizeof counters);
  return SUCCESS;
}
int null_cuda_reset(void) {
  memset(counters, 0, sizeof counters);
  return SUCCESS;
}
__attribute__((constructor)) static void read_environment(void) {
  const char *total = getenv("NULL_CUDA_TOTAL_BYTES");
  if (total) total_bytes = strtoull(total, NULL, 10);
}

/* While a stream is captured, its kernels go into a graph and are not launched, and waiting is an error. */
static void *captured;
static unsigned long long captures;

static int count(int counter) {
  if (captured && counter != REPLAYS) return counter == SYNCHRONISATIONS ? NOT_WHILE_CAPTURING : SUCCESS;
  __atomic_add_fetch(&counters[counter], 1, __ATOMIC_RELAXED);
  return SUCCESS;
}
static int new_handle(void **handle) {
  *handle = calloc(1, HANDLE_BYTES);
  return SUCCESS;
}

/* Device: one card with the limits of an H100. */
int cudaGetDeviceCount(int *devices) { *devices = 1; return SUCCESS; }
int cudaGetDevice(int *device) { *device = 0; return SUCCESS; }
int cudaSetDevice(int device) { return device == 0 ? SUCCESS : INVALID_DEVICE; }
int cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaGetLastError(void) { return SUCCESS; }
int cudaPeekAtLastError(void) { return SUCCESS; }
int cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "Null H100");
  properties->totalGlobalMem = total_bytes;
  properties->sharedMemPerBlock = 49152;
  properties->sharedMemPerBlockOptin = 232448;
  properties->sharedMemPerMultiprocessor = 233472;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2147483647;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->l2CacheSize = 52428800;
  properties->textureAlignment = 512;
  return SUCCESS;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrWarpSize: case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    default: *value = 1;
  }
  return SUCCESS;
}

/* Memory: the size stands in the page before each block. Pages that nobody writes take no memory of the host. */
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = total_bytes;
  *free_bytes = total_bytes > used_bytes ? total_bytes - used_bytes : 0;
  return SUCCESS;
}
int cudaMalloc(void **block, size_t bytes) {
  if (used_bytes + bytes > total_bytes) return OUT_OF_MEMORY;
  char *page = mmap(NULL, bytes + HEADER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (page == MAP_FAILED) return OUT_OF_MEMORY;
  *(size_t *)page = bytes;
  *block = page + HEADER_BYTES;
  used_bytes += bytes;
  return SUCCESS;
}
int cudaFree(void *block) {
  if (!block) return SUCCESS;
  char *page = (char *)block - HEADER_BYTES;
  size_t bytes = *(size_t *)page;
  used_bytes -= bytes;
  munmap(page, bytes + HEADER_BYTES);
  return SUCCESS;
}
int cudaHostAlloc(void **block, size_t bytes, unsigned flags) { *block = malloc(bytes); return SUCCESS; }
int cudaFreeHost(void *block) { free(block); return SUCCESS; }
int cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeDevice;
  return SUCCESS;
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  if (captured && kind != cudaMemcpyDeviceToDevice) return NOT_WHILE_CAPTURING;
  if (kind == cudaMemcpyHostToDevice) {
    count(UPLOADS);
    __atomic_add_fetch(&counters[UPLOADED_BYTES], bytes, __ATOMIC_RELAXED);
  } else if (kind == cudaMemcpyDeviceToHost) {
    count(DOWNLOADS);
    __atomic_add_fetch(&counters[DOWNLOADED_BYTES], bytes, __ATOMIC_RELAXED);
  }
  memcpy(to, from, bytes);
  return SUCCESS;
}
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  if (count(SYNCHRONISATIONS)) return NOT_WHILE_CAPTURING;
  return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

/* Streams and events: all work is done at once, so nothing waits. */
static size_t next_handle = 4096;
static int name_handle(void **handle) {
  *handle = (void *)__atomic_add_fetch(&next_handle, 64, __ATOMIC_RELAXED);
  return SUCCESS;
}
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return name_handle(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return name_handle(stream); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return name_handle(event); }
int cudaEventCreate(void **event) { return name_handle(event); }
int cudaEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 0.01f; return SUCCESS; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return SUCCESS; }
int cudaStreamIsCapturing(void *stream, int *status) {
  *status = captured && stream == captured;
  return SUCCESS;
}
int cudaStreamGetCaptureInfo(
    void *stream, int *status, unsigned long long *id, void **graph, const void **nodes, const void **edges, size_t *found) {
  *status = captured && stream == captured;
  if (id) *id = *status ? captures : 0;
  if (graph) *graph = captured;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (found) *found = 0;
  return SUCCESS;
}
int cudaStreamBeginCapture(void *stream, int mode) {
  captured = stream;
  captures++;
  return SUCCESS;
}
int cudaStreamEndCapture(void *stream, void **graph) {
  captured = NULL;
  return new_handle(graph);
}
int cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) { return new_handle(executable); }
int cudaGraphGetNodes(void *graph, void **nodes, size_t *found) { *found = 1; return SUCCESS; }
int cudaGraphLaunch(void *executable, void *stream) { return count(REPLAYS); }
int cudaStreamSynchronize(void *stream) { return count(SYNCHRONISATIONS); }
int cudaDeviceSynchronize(void) { return count(SYNCHRONISATIONS); }
int cudaEventSynchronize(void *event) { return count(SYNCHRONISATIONS); }

/* Kernels. */
int cudaLaunchKernel(void) { return count(LAUNCHES); }
int cudaLaunchKernelExC(void) { return count(LAUNCHES); }
int __cudaLaunchKernel(void) { return count(LAUNCHES); }
int __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return SUCCESS; }
int cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = 49152;
  return SUCCESS;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int size, size_t bytes, unsigned flags) {
  *blocks = 2;
  return SUCCESS;
}
int cudaGetSymbolAddress(void **address, const void *symbol) { *address = calloc(1, 1 << 16); return SUCCESS; }
static int succeed(void) { return SUCCESS; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, int *found) {
  *function = (void *)succeed;
  if (found) *found = 0;
  return SUCCESS;
}

/* cuBLAS and cuSOLVER. */
int cublasCreate_v2(void **handle) { return new_handle(handle); }
int cusolverDnCreate(void **handle) { return new_handle(handle); }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return SUCCESS; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return SUCCESS; }
int cublasGemmEx(void) { return count(PRODUCTS); }
int cublasSgemm_v2(void) { return count(PRODUCTS); }
int cublasSgemmStridedBatched(void) { return count(PRODUCTS); }
int cublasGemmStridedBatchedEx(void) { return count(PRODUCTS); }
int cublasLtMatmul(void) { return count(PRODUCTS); }
int cublasLtMatmulDescCreate(void **descriptor) { return new_handle(descriptor); }
int cublasLtMatrixLayoutCreate(void **layout) { return new_handle(layout); }
int cublasLtMatmulPreferenceCreate(void **preference) { return new_handle(preference); }
int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int asked, void *results, int *found) {
  memset(results, 0, 128);
  *found = 1;
  return SUCCESS;
}

/* cuDNN 9. */
int cudnnCreate(void **handle) { return new_handle(handle); }
int cudnnCreateTensorDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateFilterDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreateActivationDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnCreatePoolingDescriptor(void **descriptor) { return new_handle(descriptor); }
int cudnnBackendCreateDescriptor(int type, void **descriptor) { return new_handle(descriptor); }
int cudnnBackendDestroyDescriptor(void *descriptor) { free(descriptor); return SUCCESS; }
int cudnnGetProperty(int part, int *value) {
  const int version[] = {9, 24, 0};
  *value = part < 3 ? version[part] : 0;
  return SUCCESS;
}
int cudnnBackendGetAttribute(void *descriptor, int name, int type, long asked, long *found, void *values) {
  enum { INT64 = 3, DESCRIPTOR = 15 };
  if (found) *found = type == INT64 || type == DESCRIPTOR;
  if (type == INT64 && values && asked > 0) *(long *)values = 0; /* the workspace's bytes */
  return SUCCESS;
}
int cudnnBackendExecute(void) { return count(NETWORK_CALLS); }
int cudnnBatchNormalizationForwardTrainingEx(void) { return count(NETWORK_CALLS); }
int cudnnBatchNormalizationForwardInference(void) { return count(NETWORK_CALLS); }
int cudnnBatchNormalizationBackwardEx(void) { return count(NETWORK_CALLS); }
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    void *a, int b, int c, void *d, void *e, void *f, void *g, void *h, size_t *bytes) {
  *bytes = 0;
  return SUCCESS;
}
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void *a, int b, int c, void *d, void *e, void *f, void *g, void *h, void *i, void *j, size_t *bytes) {
  *bytes = 0;
  return SUCCESS;
}
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *a, int b, int c, void *d, void *e, size_t *bytes) {
  *bytes = 0;
  return SUCCESS;
}
