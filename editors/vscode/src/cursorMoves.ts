/** Tells a cursor that was moved from one that typing moved; no editor here. */

export class CursorMoves {
  private readonly versions = new Map<string, number>();

  /**
   * Note where a document stands at a change of its selection.
   *
   * Editors report typing as a move as well. It has changed the text by then, a move has not; what
   * is seen for the first time has been looked at, not typed into.
   */
  isMove(uri: string, version: number): boolean {
    const before = this.versions.get(uri);
    this.versions.set(uri, version);
    return before === undefined || before === version;
  }

  /** Forget a document that was closed. */
  closed(uri: string): void {
    this.versions.delete(uri);
  }
}
